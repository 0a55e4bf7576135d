"""Every figure and every sheet of images: style and saving in `style` and `sheets`, one module for each kind."""
