"""The lab: mini in a web page, every number on view and every part there to be broken.

engine/  the model in plain JavaScript modules, named as the Python ones they follow
page/    the page: one module a view
build    both, and the weights, in one HTML file
"""
