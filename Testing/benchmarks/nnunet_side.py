"""nnU-Net's part of bench_nnunet.py: runs in an interpreter that has nnunetv2, and nothing of this project.

One stage per call: "plan" (fingerprint and plan), "preprocess" (every case, one after the other), "export" (sliding window
with a network of one pointwise convolution, resampling, label map). Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def peak_mib() -> float:
    """Most memory this process has had at once (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def plan(number: int) -> None:
    """Fingerprint and plan of a data set in nnUNet_raw."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    extract_fingerprints([number], num_processes=1, check_dataset_integrity=False)
    plan_experiments([number], gpu_memory_target_in_gb=8)


class Side:
    """A planned data set of nnU-Net's."""

    def __init__(self, number: int) -> None:
        """Load plans and dataset.json."""
        from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
        from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        name = convert_id_to_dataset_name(number)
        self.raw, self.folder = Path(nnUNet_raw) / name, Path(nnUNet_preprocessed) / name
        self.store = self.folder / "bench_3d_fullres"
        self.store.mkdir(exist_ok=True)
        self.plans = PlansManager(str(self.folder / "nnUNetPlans.json"))
        self.configuration = self.plans.get_configuration("3d_fullres")
        self.dataset = json.loads((self.raw / "dataset.json").read_text())
        labels = sorted((self.raw / "labelsTr").iterdir())
        self.cases = [path.name.removesuffix(self.dataset["file_ending"]) for path in labels]

    def preprocess(self) -> None:
        """Every case."""
        worker = self.configuration.preprocessor_class(verbose=False)
        ending, channels = self.dataset["file_ending"], len(self.dataset["channel_names"])
        for case in self.cases:
            images = [str(self.raw / "imagesTr" / f"{case}_{channel:04d}{ending}") for channel in range(channels)]
            labels = str(self.raw / "labelsTr" / f"{case}{ending}")
            worker.run_case_save(str(self.store / case), images, labels, self.plans, self.configuration, self.dataset)

    def export(self, output: Path) -> None:
        """What the validation at the end of a training does for every case, with a network that costs nothing."""
        import torch
        from nnunetv2.inference.export_prediction import export_prediction_from_logits
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        classes = len(self.plans.get_label_manager(self.dataset).all_labels)
        torch.manual_seed(0)
        network = torch.nn.Conv3d(len(self.dataset["channel_names"]), classes, 1)
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.manual_initialization(
            network, self.plans, self.configuration, [network.state_dict()], self.dataset, "none", None
        )
        store = nnUNetDatasetBlosc2(str(self.store), self.cases)
        for case in self.cases:
            data, _, _, properties = store.load_case(case)
            with torch.no_grad():
                logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:])).cpu()
            export_prediction_from_logits(
                logits, properties, self.configuration, self.plans, self.dataset, str(output / case), False, 2
            )


def main() -> int:
    """Run one stage."""
    stage, number, output = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if stage == "plan":
        plan(number)
        return 0
    import nnunetv2.inference.predict_from_raw_data  # imports count for neither side

    side = Side(number)
    before, start, processor = peak_mib(), time.perf_counter(), time.process_time()
    if stage == "preprocess":
        side.preprocess()
    else:
        output.mkdir(parents=True, exist_ok=True)
        side.export(output)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    figure = {"seconds": seconds, "processor_s": processor, "peak_mib": peak_mib(), "before_mib": before}
    print(json.dumps(figure | {"cases": len(side.cases)}))
    del nnunetv2
    return 0


if __name__ == "__main__":
    sys.exit(main())
