"""The inner loops that the program's speed hangs on, one file a loop and kind of device."""
