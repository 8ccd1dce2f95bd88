def block():
    yield ("write", _nns_inplace.iadd((yield ("read", model.transformer.h[5], "output")), v), model.transformer.h[5], "output")
    yield ("element", _nns_inplace.imul((_nns_value := (yield ("read", model.transformer.h[6], "output")))[:, -1], 2), _nns_value, model.transformer.h[6], "output", _nns_key[:, -1]); del _nns_value
    yield ("element", _nns_inplace.iadd((_nns_value := (yield ("read", model.transformer.h[7], "output")))[0][:, i], v), _nns_value, model.transformer.h[7], "output", _nns_key[0], _nns_key[:, i]); del _nns_value
    yield ("element", _nns_inplace.isub((_nns_value := (yield ("read", (_nns_place := model.transformer.h[8]), "output")))[(_nns_index_0 := _nns_key[f()])][(_nns_index_1 := _nns_key[i])], g()), _nns_value, _nns_place, "output", _nns_index_0, _nns_index_1); del _nns_value; del _nns_index_0; del _nns_index_1; del _nns_place
    yield ("end",)
