"""The example: a reading list, with a table, pages that stay live, search, an API and a small job.

Other features build on it, and it imports none of them: `hooks` is how.
"""
