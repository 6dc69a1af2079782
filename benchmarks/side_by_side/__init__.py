"""The compared applications. They use only the packages in `requirements.txt`.

Except `bare_app`, the baseline, which runs on Quart and Hypercorn.
"""
