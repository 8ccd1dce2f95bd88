def block():
    def _nns_comprehension_set_0(_nns_items):
        _nns_result = {*()}
        for layer in _nns_items:
            _nns_result.add((yield ("read", layer, "output")).shape)
        return _nns_result
    shapes = (yield from _nns_comprehension_set_0(model.h))
    yield ("end",)
