"""From a .tflite file to the project's graph: container format, schema, import."""
