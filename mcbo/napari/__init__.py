"""The plugin for napari (the extra ``napari``): ``napari.yaml`` says what it contributes."""
