# CE by norm_cfg alone, in the FPN and the mask head of Mask R-CNN with ResNet-50; over SyncBN, as two pictures a GPU
# are few for trained batch norms.
_base_ = "mask-rcnn_r50_fpn_2x_coco.py"

norm_cfg = dict(type="CE", norm=dict(type="SyncBN"))
model = dict(neck=dict(norm_cfg=norm_cfg), roi_head=dict(mask_head=dict(norm_cfg=norm_cfg)))
