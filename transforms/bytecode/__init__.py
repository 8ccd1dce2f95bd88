"""Operations inside a function: found in its bytecode, and tapped there."""
