def block():
    def _nns_comprehension_list_0(_nns_items):
        def _nns_comprehension_list_1(_nns_items):
            _nns_result = []
            for i in _nns_items:
                _nns_result.append((yield ("read", h, "output"))[..., i])
            return _nns_result
        _nns_result = []
        for h in _nns_items:
            _nns_result.append((yield from _nns_comprehension_list_1(range(n))))
        return _nns_result
    heads = (yield from _nns_comprehension_list_0(model.h))
    yield ("end",)
