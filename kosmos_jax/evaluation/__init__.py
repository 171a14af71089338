"""What a model can do, measured on held-out data.

`tasks` are the measurements, `report` and `pictures` show them, `command` and `demo` are what users call.
"""
