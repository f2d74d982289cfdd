"""Detection with what was trained: from images to boxes, whatever asks for it."""
