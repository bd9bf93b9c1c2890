"""A page that segments photos in the browser: exported graphs, ONNX Runtime for the web, and plain ES modules.

`page/` holds the page as it is served: no framework and no build. What it runs graphs with is in
`onnxruntime-web.tar.xz`, of the version that `package-lock.json` pins; `make web` packs it anew from npm.
"""
