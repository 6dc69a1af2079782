"""The same work, done by others, on the packages of `requirements.txt` alone.

But for `bare_app`, which runs on this application's: what Quart and Hypercorn cost without work.
"""
