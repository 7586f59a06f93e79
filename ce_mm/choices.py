"""What commands choose among, and take where nothing is chosen: apart, as a help is not to wait for PyTorch."""

#: Layouts of checkpoints; auto is whichever a file has.
LAYOUTS = ("auto", "authors", "mmpretrain", "mmdet", "backbone", "torchvision")
#: What a checkpoint can be converted to.
TARGETS = ("backbone", "classifier", "authors")
#: Format of an exported network -> how the names of its files end.
EXPORTED = {"onnx": ".onnx", "torchscript": ".pt", "exported-program": ".pt2"}
#: What COCO evaluates.
METRICS = ("bbox", "segm")
#: Below this magnitude a channel counts as inhibited.
THRESHOLD = 0.01
#: The paper averages the ratio of inhibited channels over as many layers, the first ones.
LAYERS = 6
#: The paper's, for norms without batch decorrelation, which have none of their own.
GROUP_SIZE = 16
