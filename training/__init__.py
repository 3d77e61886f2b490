"""How the embedded tiny model is made: procedural pictures, two training phases, export and evaluation."""
