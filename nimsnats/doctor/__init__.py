"""`nimsnats doctor`: looks a machine over before, or while, a node runs on it, and says what to change.

It reads what the node would read, asks the kernel and the registry, and changes nothing: no file gets a name, no port
is taken, nothing is registered. One module a subject; each check returns findings, `report` words them.
"""

from nimsnats.doctor.examination import Patient, examine
from nimsnats.doctor.finding import Finding, Level
from nimsnats.doctor.report import as_json, as_text, exit_code

__all__ = ["Finding", "Level", "Patient", "as_json", "as_text", "examine", "exit_code"]
