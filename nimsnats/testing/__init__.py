"""What users import in their own tests: a pytest plugin with a real server inside the test process.

Installing nimsnats installs the plugin; see `plugin.py` for the fixtures.
"""
