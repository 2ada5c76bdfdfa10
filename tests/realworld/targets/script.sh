#!/bin/bash
echo "version ${1:?}"
