def block():
    def _nns_comprehension_list_0(_nns_items):
        _nns_result = []
        for i in _nns_items:
            if i != 7:
                _nns_result.append((yield ("read", model.h[i], "output")).norm())
        return _nns_result
    norms = (yield from _nns_comprehension_list_0(range(6, 9)))
    yield ("end",)
