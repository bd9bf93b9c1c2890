"""What the campaign has found and was mended: kept by hand, since it leaves no trace in counts."""

MENDED = (
    "config.json: entries of another kind, or of impossible sizes, ended in errors of the modules built of them; each "
    "is checked for its kind and range, and weights are counted before they are made.",
    "JSON nested some thousand levels deep ended every reader in a RecursionError.",
    "model.json and engine.json could name files outside of their folder (seen while the inputs were written).",
    "Broken ONNX files, and notes for kernels that do not fit them, were shown as the libraries' own errors.",
    "Pickles cut at certain places raised struct.error and IndexError.",
    "`eval --ap`: coordinates beyond any picture ended the process inside pycocotools (SIGSEGV); other wrong entries "
    "gave a traceback.",
    "A damaged state of train or of importance, and the note of a shard of embeddings, ended in the errors of the "
    "libraries that read them.",
    "Weights that no model has were used: tensors on `meta`, sparse, quantized or complex ones, a number expanded to "
    "terabytes, and integers that were taken for floats; names that are no text gave a traceback.",
    "config.json: an activation of 10^30 bits took all memory; grids are checked for bits, scale and zero point.",
    "SA-1B: a box or a point that is not finite gave a traceback; COCO results with lists for ids did, too, and AP of "
    "pictures whose ids are names.",
    "Recipes nested without end, or with numbers of thousands of digits; a damaged record of a step of `run`.",
    "Memory that ran out was a traceback.",
    "A kernel's note that does not fit made OpenVINO go on with nothing, and a traceback; answers are counted.",
    "A kernel's note whose values are words was a traceback.",
    "`compress` with negative views, and other numbers that no run can be made of.",
    "A training state whose history is a word was a traceback at the first step; 10^11 synthetic scenes were named one "
    "by one before anything else.",
    "A PostScript file named as a photo would have been run by Ghostscript, where that is installed (seen likewise).",
)
LEFT = ("OpenVINO reads without end in a graph whose opset is 2^40; ONNX Runtime, which is the default, refuses it.",)
"""What is another library's, and has no remedy here."""
