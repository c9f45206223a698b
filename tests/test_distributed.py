"""Who holds which columns; what is exchanged is tested where it is used, by several processes."""

from __future__ import annotations

import torch

from simmst.distributed import ProcessGroup


def test_shards_cover_every_column_once():
    for total in (1, 2, 7, 12):
        ranks = [ProcessGroup(number, 3) for number in range(3)]
        index = torch.arange(total)
        assert sorted(torch.cat([rank.select(index) for rank in ranks]).tolist()) == index.tolist()
        for rank in ranks:
            own = rank.select(index)
            assert rank.shard_size(total) == len(own)
            assert rank.local(own).tolist() == list(range(len(own)))
            assert torch.equal(rank.shard(index), own)


def test_blocks_follow_each_other_and_begin_at_whole_bytes():
    for total in (1, 8, 21, 64, 100):
        for count in (1, 2, 3, 7):
            blocks = [ProcessGroup(number, count).block(total) for number in range(count)]
            whole_bytes = [ProcessGroup(number, count).block(-(-total // 8), unit=1) for number in range(count)]
            assert [index for block in blocks for index in range(total)[block]] == list(range(total))
            assert all(block.start % 8 == 0 or block.start == total for block in blocks)
            for block, packed in zip(blocks, whole_bytes, strict=True):
                assert (-(-block.start // 8), -(-block.stop // 8)) == (packed.start, packed.stop)
