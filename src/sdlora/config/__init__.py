"""`params.yaml`: one module a section, `load` the only reader."""
