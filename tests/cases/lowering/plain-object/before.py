# Any object may have an `output`: the text does not tell, the request does.
with model.trace("Hello"):
    process.output = process.output + 1
