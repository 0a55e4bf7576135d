"""Named image sets, read from local folders first, as one `ImageData` each."""
