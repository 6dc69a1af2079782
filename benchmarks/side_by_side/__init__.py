"""The same work, done by others; each module runs on the packages of `requirements.txt` alone."""
