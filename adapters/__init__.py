"""One device dialect a file: topics and payloads of devices into Data Objects, and back."""
