"""From files to batches: converting data sets once, reading them back by index, the order of images."""
