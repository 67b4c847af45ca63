"""Tables of what has been found."""


def write(files, folder):
    pass
