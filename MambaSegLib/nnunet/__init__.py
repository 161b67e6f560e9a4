"""Models trained with nnU-Net v2, made into bundles: `convert.convert_nnunet`."""
