"""What everything else stands on: programs read and evaluated, compressed arrays, compiled HLO, checked options."""
