def block():
    def _nns_comprehension_list_0(_nns_items):
        _nns_result = []
        for a in _nns_items:
            if a:
                for b in model.h:
                    if (yield ("read", b, "input")) is not a:
                        _nns_result.append(a + (yield ("read", b, "output")))
        return _nns_result
    both = (yield from _nns_comprehension_list_0(values))
    yield ("end",)
