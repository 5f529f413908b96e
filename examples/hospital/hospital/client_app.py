"""hospital: the client."""

from fedmt_flower import Task, client_app

# Flower ClientApp
app = client_app(Task.in_module("digits", "digits.task"), Task.in_module("cells", "cells.task"))
