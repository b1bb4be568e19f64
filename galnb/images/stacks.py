from galnb.images.readers import Stack, open_stack  # noqa: F401
