// Run by Node beside transformers.js: asks a layout's folder by its code, and writes what it saw and found.
//
//     node ask_transformers.mjs FOLDER DTYPE IN.json OUT
//
// IN lists pictures (file of raw RGB bytes, width, height) and prompts (points and labels, as shares of the picture).
// OUT/pixels_I.bin are the float32 pixel values that the encoder is given, OUT/masks_I_P.bin three masks as bytes.
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, basename } from 'node:path';
import { AutoProcessor, RawImage, SamModel, env } from '@huggingface/transformers';

const [folder, dtype, given, out] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const model = await SamModel.from_pretrained(basename(folder), { dtype });
const processor = await AutoProcessor.from_pretrained(basename(folder));
const { images, prompts } = JSON.parse(readFileSync(given, 'utf8'));
const shapes = [];
for (const [number, { file, width, height }] of images.entries()) {
    const image = new RawImage(new Uint8ClampedArray(readFileSync(file)), width, height, 3);
    let embeddings = null;
    for (const [index, prompt] of prompts.entries()) {
        const points = prompt.map(([x, y]) => [x * width, y * height]);
        const inputs = await processor(image, { input_points: [[points]], input_labels: [[prompt.map((p) => p[2])]] });
        if (embeddings === null) {
            embeddings = await model.get_image_embeddings(inputs);
            const { data, dims } = inputs.pixel_values;
            writeFileSync(`${out}/pixels_${number}.bin`, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
            shapes.push({ pixels: dims, reshaped: inputs.reshaped_input_sizes[0] });
        }
        const found = await model({ ...inputs, ...embeddings });
        const [masks] = await processor.post_process_masks(
            found.pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes);
        writeFileSync(`${out}/masks_${number}_${index}.bin`, new Uint8Array(masks.data));
    }
}
writeFileSync(`${out}/shapes.json`, JSON.stringify(shapes));
