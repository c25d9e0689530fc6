"""The stateful machine: walks of operations in any order, compared with a model step by step."""
