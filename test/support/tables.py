"""Tables of points as programs write them, for both packages: some that all mean the same voxels, and some to be refused."""

import numpy as np
from numpy.typing import NDArray

AFFINE = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 22], [0, 0, 2, -48], [0, 0, 0, 1]])
"""Of the image in which all of them lie: voxel (10, 20, 30) is at (10, 2, 12) RAS mm."""

SHAPE = (40, 44, 48)

VOXELS: list[list[float]] = [[10.0, 20, 30], [11, 21, 31], [12, 22, 32.5]]

READ: dict[str, str] = {
    "Learn2Reg": "10,20,30\n11,21,31\n12,22,32.5\n",
    "line ends of Windows": "10,20,30\r\n11,21,31\r\n12,22,32.5\r\n",
    "lines behind": "10,20,30\n11,21,31\n12,22,32.5\n\n\n",
    "spaces": " 10, 20,30\n11,\t21,31\n12,22, 32.5 \n",
    "napari": "index,axis-0,axis-1,axis-2\n0.0,10.0,20.0,30.0\n1.0,11.0,21.0,31.0\n2.0,12.0,22.0,32.5\n",
    "napari, axes in reverse": "index,axis-2,axis-1,axis-0\n0.0,30,20,10\n1.0,31,21,11\n2.0,32.5,22,12\n",
    "napari with features": "index,axis-0,axis-1,axis-2,confidence\n0,10,20,30,0.5\n1,11,21,31,0.25\n2,12,22,32.5,1\n",
    "pandas": ",x,y,z\n0,10,20,30\n1,11,21,31\n2,12,22,32.5\n",
    "pandas, named index": "index,x,y,z\n0,10,20,30\n1,11,21,31\n2,12,22,32.5\n",
    "names alone": "x,y,z\n10,20,30\n11,21,31\n12,22,32.5\n",
    "z first": "z,y,x\n30,20,10\n31,21,11\n32.5,22,12\n",
    "capitals, spaces, a mark": "X, Y, Z\n10, 20, 30\n11, 21, 31\n12, 22, 32.5\n",
    "quoted names, as R has them": '"","x","y","z"\n"1",10,20,30\n"2",11,21,31\n"3",12,22,32.5\n',
    "voxels of 3D Slicer": "label,i,j,k\nA,10,20,30\nB,11,21,31\nC,12,22,32.5\n",
    "labels with commas": 'label,x,y,z\n"tip, left",10,20,30\n"; x",11,21,31\n"a ""b""",12,22,32.5\n',
    "3D Slicer": "label,r,a,s,defined,selected,visible,locked,description\n"
    "F-1,10,2,12,1,1,1,0,\nF-2,9,1,14,1,1,1,0,\nF-3,8,0,17,1,1,1,0,\n",
    "3D Slicer, LPS": "label,l,p,s,defined,selected,visible,locked,description\n"
    "F-1,-10,-2,12,1,1,1,0,\nF-2,-9,-1,14,1,1,1,0,\nF-3,-8,-0,17,1,1,1,0,\n",
    "ANTs": "x,y,z,t,label,comment\n-10,-2,12,0,1,first\n-9,-1,14,0,2,\n-8,0,17,0,3,\n",
    "ANTs, t first": "t,x,y,z\n0,-10,-2,12\n0.0,-9,-1,14\n0,-8,0,17\n",
}
"""All of them say ``VOXELS``."""

REFUSED: dict[str, str] = {
    "four numbers": "1,10,20,30\n2,11,21,31\n",
    "four numbers, the last a label": "10,20,30,1\n11,21,31,2\n",
    "six numbers": "10,20,30,11,20,30\n11,21,31,11,20,31\n",
    "two numbers": "10,20\n11,21\n",
    "a label without a name": "10,20,30,tip\n11,21,31,left\n",
    "a label without a name first": "tip,10,20,30\n",
    "names that nobody knows": "a,b,c\n10,20,30\n",
    "TrackMate": "LABEL,POSITION_X,POSITION_Y,POSITION_Z\nA,10,20,30\n",
    "two axes": "index,axis-0,axis-1\n0,10,20\n",
    "time and three axes": "index,axis-0,axis-1,axis-2,axis-3\n0,0,10,20,30\n",
    "points in time": "x,y,z,t\n10,20,30,0\n11,21,31,1\n",
    "no z": "x,y\n10,20\n",
    "two sets": "x,y,z,r,a,s\n10,20,30,10,2,12\n",
    "right and left": "r,a,s,l,p\n10,2,12,-10,-2\n",
    "a name twice": "x,y,z,x\n10,20,30,10\n",
    "names of pandas' columns": "0,1,2\n10,20,30\n",
    "names of pandas' columns, and its index": ",0,1,2\n0,10,20,30\n",
    "half a header": "x,20,30\n10,20,30\n",
    "a comma too many in a label": "label,x,y,z\ntip, left,10,20,30\n",
    "more cells than names": "x,y,z\n1,10,20,30\n2,11,21,31\n",
    "fewer cells than names": "x,y,z,label\n10,20,30\n",
    "a line between": "x,y,z\n10,20,30\n\n11,21,31\n",
    "a line between, without names": "10,20,30\n\n11,21,31\n",
    "names without points": "x,y,z\n",
    "nothing": "",
    "line ends": "\n\n",
    "semicolons": "x;y;z\n10;20;30\n",
    "commas as points": "10,5;20,5;30,5\n",
    "tabs": "x\ty\tz\n10\t20\t30\n",
    "quoted numbers": '"10","20","30"\n',
    "words as numbers": "x,y,z\nten,20,30\n",
    "an underscore": "x,y,z\n1_0,20,30\n",
    "digits of others": "x,y,z\n١,20,30\n",
    "hexadecimal": "x,y,z\n0x10,20,30\n",
    "not finite": "x,y,z\n10,nan,30\n",
    "infinite": "r,a,s\n10,2,1e999\n",
    "empty cells": "x,y,z\n10,,30\n",
    "far away": "x,y,z\n10,20,1e30\n",
    "an open quote": 'x,y,z,label\n10,20,30,"tip\n',
    "NUL": "x,y,z\n10,20,30\0\n",
}
"""Neither package may take any of these for points."""


def moved(by: tuple[float, float, float]) -> NDArray[np.float64]:
    """``VOXELS``, moved."""
    return np.array(VOXELS) + by
