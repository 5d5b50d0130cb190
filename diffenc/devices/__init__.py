"""Devices and processes: where arrays live, what is compiled, who does what and who leaves when."""
