require('fs').writeFileSync('out', 'front\n');
