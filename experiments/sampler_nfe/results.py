"""A file of results, one JSON object a line, that a killed measurement continues."""

import json


class Results:
    def __init__(self, path):
        self.path = path
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a kill may have left half a line
        if whole != text:
            path.write_text(whole)
        self.rows = [json.loads(line) for line in whole.splitlines()]

    def has(self, **key):
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, **row):
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
