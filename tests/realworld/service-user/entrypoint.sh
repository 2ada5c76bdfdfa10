#!/bin/sh
exec echo "starting $*"
