"""Turn the starter into an application: `make start NAME=my-service`.

This package needs the standard library only, because it runs before anything is installed. At the
end it removes itself: a started application does not own it.
"""
