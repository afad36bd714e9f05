"""video2dataset's download stage, run by its own Python: ``download.py URLS FOLDER SAMPLES``."""

import sys

PROCESSES = 2
THREADS = 32


def main(urls: str, folder: str, samples_per_shard: int) -> None:
    from video2dataset import video2dataset

    config = {
        "subsampling": {},
        "reading": {
            "yt_args": {"download_size": 360, "download_audio_rate": 44100},
            "timeout": 60,
            "sampler": None,
        },
        "storage": {
            "number_sample_per_shard": samples_per_shard,
            "oom_shard_count": 5,
            "captions_are_subtitles": False,
        },
        "distribution": {
            "processes_count": PROCESSES,
            "thread_count": THREADS,
            "subjob_size": 1000,
            "distributor": "multiprocessing",
        },
    }
    video2dataset(
        url_list=urls,
        input_format="csv",
        url_col="url",
        output_folder=f"{folder}/made",
        output_format="webdataset",
        encode_formats={"video": "mp4"},
        tmp_dir=folder,
        config=config,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
