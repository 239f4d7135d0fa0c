import onnx
def load_model(path): raise NotImplementedError
def graph_inputs(p):
    ini={t.name for t in p.graph.initializer}|{t.values.name for t in p.graph.sparse_initializer}
    return [v for v in p.graph.input if v.name not in ini]
