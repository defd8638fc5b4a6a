"""Teachers: frozen networks whose features of image patches a generator learns to predict (REPA, arXiv:2410.06940).

``face`` says what is asked of one, whichever it is.
"""
