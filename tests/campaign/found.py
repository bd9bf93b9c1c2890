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
    "A PostScript file named as a photo would have been run by Ghostscript, where that is installed (seen likewise).",
)
