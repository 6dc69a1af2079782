"""Import links from bookmark files of browsers, and export them.

Built on `app.links`, which does not know it.
"""
