"""Files and objects that are whole or not there."""
