def block():
    def _nns_comprehension_dict_0(_nns_items):
        _nns_result = {}
        for name, layer in _nns_items:
            _nns_result.update({name: (yield ("read", layer, "output")).norm()})
        return _nns_result
    norms = (yield from _nns_comprehension_dict_0(layers.items()))
    yield ("end",)
