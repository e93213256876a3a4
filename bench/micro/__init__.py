"""What one request costs at the ring and through the block device, both ends in one process.

Instructions are counted by callgrind and repeat exactly; `ratchet.json` keeps them. Time is for the eye only.
"""
