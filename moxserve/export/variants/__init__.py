"""Further forms of an exported model, each made by a converter in a process of its own, verified and measured."""
